"""One file a kind of personal data or secret; see `personal_data.identifier` for what it holds."""
