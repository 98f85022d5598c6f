"""The import of a Windows Azure cloud service: .csdef and .cscfg to service.yaml."""
