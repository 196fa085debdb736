"""Tasks whose right ranks are known: low-rank updates planted in a frozen model, to be found by students.

`truths` says which module gets how many directions, `planting` puts them in and draws texts from the planted
model, `students` trains adapters on its answers, `recovery` asks how much of the right plan's gain a
strategy's plan recovers.
"""
