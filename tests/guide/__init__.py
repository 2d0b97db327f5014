"""The user guide as a table of features and the tests that show them."""
