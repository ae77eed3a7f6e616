import logging

# bitsandbytes, which PEFT imports where it is installed, would say at every start that an optional kernel is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
