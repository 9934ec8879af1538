pub mod env_file;
