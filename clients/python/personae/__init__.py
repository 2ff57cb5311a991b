"""Generated from protos/: the messages and stubs of the personae API."""
