"""Tasks whose right ranks are known: low-rank updates planted in a frozen model, to be found by students.

`truths` says which module gets how many directions, `planting` puts them in and draws texts from the planted
model, `students` trains adapters on its answers, `recovery` does so for every strategy's plan. How much of the right
plan's gain each recovers is said by `stats.recovery`, without torch.
"""
