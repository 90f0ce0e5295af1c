"""`python -m memscaler` is `memscaler`."""

from memscaler.cli.main import main

if __name__ == "__main__":
    main()
