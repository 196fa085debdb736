"""Plans where people train: what is pasted into a training tool, read back, and the best plan it can express.

`trainers.json` says what each tool takes, and in which version that was read; `fragment.py` writes, `reading.py` reads
what was written as the tool does, and `checking.py` builds it on the model and loads it with the tool where it is
installed.
"""
