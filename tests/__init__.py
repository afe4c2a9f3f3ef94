import gc
import sys

if "pytest" in sys.modules:
    gc.disable()  # a quarter of the time that torch takes to be imported; conftest.py has it back
