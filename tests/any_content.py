"""Settings of a worker that loads content in every form."""

accept_content = ["cloudpickle", "json", "msgpack", "yaml"]
