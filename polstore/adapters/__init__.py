"""What joins the recorder to a training loop: torch here, the frameworks on top of it later."""
