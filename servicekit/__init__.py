"""The parts that both servers share: settings, credentials, calls, telemetry, lifecycle."""
