from .load_model import load as load
from .local_models import find_model as find_model
from .local_models import list_models as list_models
from .openflamingo import load_openflamingo as load_openflamingo
