"""The checker that the test suite puts on every function of the package: jaxtyping's shapes, and whole numbers pass as floats."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
