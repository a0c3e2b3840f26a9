from gptoss_ft.cli import train

train()
