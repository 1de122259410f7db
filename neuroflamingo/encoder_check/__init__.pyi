from .end_to_end import check_encoder as check_encoder
from .end_to_end import failures as failures
from .end_to_end import toy_model as toy_model
from .end_to_end import train as train
from .end_to_end import two_scans as two_scans
from .isolation import check_isolated as check_isolated
