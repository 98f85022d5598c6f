"""What every data path must do, whatever it is made of. `paths.py` says how to put another one under the suite."""
