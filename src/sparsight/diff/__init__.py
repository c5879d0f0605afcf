"""What differs between two models' dictionaries, beyond what two seeds of one model differ by. Statistics only: no language model in here."""
