"""C programs that the tests compile and run; gen_forms.py builds them."""
