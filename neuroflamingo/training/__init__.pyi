from .assembly import build as build
from .rehearsal import rehearse as rehearse
from .run import train as train
from .trainable import add_lora as add_lora
from .trainable import freeze as freeze
from .trainable import merge_lora as merge_lora
from .trainable import parameter_groups as parameter_groups
