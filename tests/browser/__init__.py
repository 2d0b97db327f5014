"""The notebook as a person has it: JupyterLab in Chromium."""
