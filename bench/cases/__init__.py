"""The cases: one file each, with its data, its contenders and the bounds it must hold."""
