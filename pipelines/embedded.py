"""The former place of ``python -m pipelines.synthetic``."""

from pipelines.common.command import run
from pipelines.common.errors import UserError


def main() -> None:
    raise UserError("the synthetic faces are made by: python -m pipelines.synthetic FOLDER")


if __name__ == "__main__":
    run(main)
