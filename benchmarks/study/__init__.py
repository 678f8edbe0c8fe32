"""Two questions, answered by training on real text: does influence predict retraining, and does any mixture win?

    python -m benchmarks.study.runs --corpora FOLDER --out FOLDER      make the runs; killed, it goes on
    python -m benchmarks.study.fidelity --out FOLDER                   docs/fidelity.md's first half
    python -m benchmarks.study.head_to_head --out FOLDER               and its second

`--shape tiny` makes all of it in seconds, on generated text.
"""
