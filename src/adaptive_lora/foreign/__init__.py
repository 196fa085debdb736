"""Results made elsewhere: lm-evaluation-harness, PEFT's method comparison, tables; read, paired and judged."""
