"""A folder to the Hugging Face Hub, through huggingface_hub: HF_ENDPOINT, HF_TOKEN and a stored login count as it has them.

Uploading is resumed by asking again: what the Hub has with the same hash is not sent. The token is handed to the library and nowhere else;
should an error's text hold it, it is taken out.
"""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from sparsight.errors import HubError

__all__ = ["check_repo_id", "hub_token", "upload"]


def check_repo_id(repo_id: str) -> None:
    """Raises HubError unless this is user/name as the Hub allows it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"--to {repo_id}: {error}") from None
    if repo_id.count("/") != 1:
        raise HubError(f"--to {repo_id} names no user; give user/name.")


def hub_token() -> str:
    """The user's token. Raises HubError when there is none."""
    token = get_token()
    if not token:
        raise HubError(
            "There is no Hugging Face token to upload with. Set HF_TOKEN or run `hf auth login`, or look first with --dry-run."
        )
    return token


def upload(folder: Path, repo_id: str, token: str, *, private: bool, repo_type: str) -> str:
    """Makes the repository if there is none and uploads the folder; returns the commit's address. Raises HubError."""
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type=repo_type,
            commit_message="Published by Sparsight",
        )
    except Exception as error:  # the Hub, the network and the store of large files have a hierarchy each; all of them mean: not finished
        reason = _without_token(error, token)
        raise HubError(
            f"Uploading {folder} to {repo_id} stopped ({reason}). The same command goes on: what has arrived is not sent again."
        ) from None
    return str(commit.commit_url)


def _without_token(error: BaseException, token: str) -> str:
    """What went wrong in one line: the Hub's own words where there are some, and whose fault a wrapped error is."""
    said = []
    for each in (error, error.__cause__):
        words = [line.strip() for line in str(each or "").splitlines() if line.strip()]
        if isinstance(each, HfHubHTTPError) and each.server_message:
            words = [f"{each.response.status_code} {each.server_message}"]
        said += words[:1]
    return " ".join(dict.fromkeys(said)).replace(token, "(token)") or type(error).__name__
