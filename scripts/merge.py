from gptoss_ft.cli import merge

merge()
