"""python -m ipfast"""

from .cli import app

app(prog_name="ipfast")
