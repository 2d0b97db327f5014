"""Real servers, real workers, as users have them."""
