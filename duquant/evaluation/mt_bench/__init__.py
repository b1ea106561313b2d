"""MT-Bench: two-turn questions answered by a model and judged by a stronger one.

Perplexity says little about how a chat model talks after quantization. MT-Bench (Zheng et al.,
NeurIPS 2023) asks 80 questions of eight categories, each with a follow-up, and lets a judge rate
the answers from 1 to 10, or compare those of two models. It goes in three steps, each of which
continues where it was interrupted:

======== ==================================================== =================================
step     what it does                                         what it writes
======== ==================================================== =================================
answer   the model answers in its own chat format             ``model_answer/MODEL.jsonl``
judge    an OpenAI-compatible endpoint reads the answers      ``model_judgment/JUDGE_*.jsonl``
show     scores per category, wins, ties and losses           ``results_JUDGE.json``
======== ==================================================== =================================

File names and records are those of FastChat, where the benchmark comes from, so its tools read
them. The questions and reference answers are its files too; they are not part of this package.
"""
