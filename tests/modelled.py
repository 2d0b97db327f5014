"""Tasks of a module with models as arguments, whose annotations are texts; a worker has them by -I."""

from __future__ import annotations

from pydantic import BaseModel, ValidationInfo, field_validator

from nbqueue import shared_task
from nbqueue.execute import BoundTask


class Order(BaseModel):
    number: int
    paid: bool = False

    @field_validator("number")
    @classmethod
    def is_allowed(cls, number: int, info: ValidationInfo) -> int:
        if info.context and number > info.context.get("most", 1_000):
            raise ValueError(f"too many for {info.context['celery_task_name']} of {info.context['celery_app'].main}")
        return number


class Large(Order):
    weight: float = 1.0


@shared_task(pydantic=True, pydantic_context={"most": 100})
def pay(order: Order, note: str | None = None) -> Order:
    assert type(order) is Order, order
    return Order(number=order.number + 1, paid=True)


@shared_task(bind=True, pydantic=True, max_retries=1)
def pay_later(self: BoundTask, order: Order | None = None) -> Order | None:
    if self.request.retries == 0 and order is not None:
        raise self.retry(args=(Order(number=order.number + 10),), countdown=0)
    return order
