"""Scripts to copy from; each is run by the tests."""
