"""An answer in the time there is: which rank, where, at which rate, and what to paste.

1. **Material** (`material.py`): the model's shape and the data set's records, by configuration and tokenizer alone.
2. **Speed** (`speed.py`): a few updates and evaluations on this machine; what a record costs to train and to evaluate.
3. **Size** (`sizing.py`): by that speed the largest study of a fixed list that fits the time: updates, strategies,
   seeds, records. Better studies stand first: verdicts over more updates, then fewer updates, then no verdict.
4. **Study** (`study_text.py`): an ordinary study file. One budget, with its half and its double as controls, so that
   the baseline is trained at three (*how much*); beside it the strategies that the committed studies speak for most
   (`evidence.py`; *where*); the rate from a short bracket around a default, on uniform at the middle budget alone
   (`tune: shared`). The margin is a number, 0.01 nats a token, about 1 % of perplexity: half a budget is often no
   worse, and then measures none.
5. **Run** (`running.py`): `study.runner`, locked, in looks. Looks alone may end it early with a verdict. At the
   deadline it saves a checkpoint and stops; what is finished is judged by the last look there was, or described. Banks
   are so small that a deadline leaves finished seeds behind. The same command goes on, with as much time again.
6. **Advice** (`advice.py`): uniform at the middle budget unless an interval says otherwise. Half of it where half is
   shown to lose less than the margin; twice where twice is shown to be better, on average by more than the margin; a
   strategy's plan where its verdict is *better*. Undecided is an answer: uniform, and which gain is excluded.
7. **Real run** (`real_run.py`): seconds by the speed, memory by shape.

Short runs are a proxy: what is said holds for as many updates as the study had, which the answer repeats. Half and
double have the rate that is best for the middle.
"""
