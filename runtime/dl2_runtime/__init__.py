"""What a training image needs to run as a DL2 job."""
