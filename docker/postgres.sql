-- beside the ledger's own database, which the image makes
CREATE DATABASE prefect OWNER mla_med;
