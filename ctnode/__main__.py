"""``python -m ctnode`` is the ``ctnode`` command."""

from ctnode.cli import main

if __name__ == "__main__":
    main()
