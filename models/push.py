"""Put a model on Hugging Face's hub: ``python -m models.push exported/a --repo user/name``.

The folder is what ``python -m models.export`` wrote; `models.pretrained.from_pretrained` reads it by that name. Who may
write there is told by ``hf auth login`` or the variable ``HF_TOKEN``.
"""

import argparse
import re
from pathlib import Path

from models.pretrained import FILES, from_pretrained, hub
from pipelines.common.command import run, say
from pipelines.common.errors import UserError, one_line


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m models.push", description="Put an exported model on Hugging Face's hub."
    )
    parser.add_argument("folder", type=Path, help="what models.export wrote")
    parser.add_argument("--repo", required=True, help="user/name; made where it is not there")
    parser.add_argument("--public", action="store_true", help="a new one is private unless this is said")
    parser.add_argument("--message", default="Model of Facemill", help="of the commit")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repo):
        raise UserError(f"--repo is user/name, not {args.repo!r}")
    missing = [name for name in FILES if not (args.folder / name).is_file()]
    if missing:
        raise UserError(
            f"{args.folder} has no {missing[0]}: write it by python -m models.export --output {args.folder}"
        )
    from_pretrained(args.folder)  # so nothing that cannot be read goes out
    library = hub()
    try:
        interface = library.HfApi()
        interface.create_repo(args.repo, private=not args.public, exist_ok=True)
        commit = interface.upload_folder(
            repo_id=args.repo, folder_path=args.folder, allow_patterns=list(FILES), commit_message=args.message
        )
    except Exception as error:  # of the hub's, or of whichever client the library reaches it by
        raise UserError(f"{args.repo} was not written: {one_line(error)}") from error
    say(f"written: {commit.commit_url}")


if __name__ == "__main__":
    run(main)
