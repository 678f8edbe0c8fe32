"""One posterior over every capability's loss from runs, leave-one-out and influence, and what follows from it."""
