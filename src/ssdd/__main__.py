"""``python -m ssdd``: the same as the ``ssdd`` command."""

from ssdd.cli.main import main

if __name__ == "__main__":
    main()
