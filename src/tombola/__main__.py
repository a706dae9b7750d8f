"""``python -m tombola``, and so ``torchrun … -m tombola``: the command line."""

from tombola.lab.cli.main import main

if __name__ == "__main__":
    main()
