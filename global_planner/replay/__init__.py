"""What would have happened: the engine model and a trace in virtual time. The mocker serves the same model over HTTP."""
