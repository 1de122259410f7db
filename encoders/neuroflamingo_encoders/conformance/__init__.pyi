from .check import CheckResult as CheckResult
from .check import check_encoder as check_encoder
from .check import failures as failures
