"""python -m experiments: list of all experiments and commands."""

from experiments.listing import list_all

if __name__ == "__main__":
    print(list_all())
