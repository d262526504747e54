//! `mini image …`: the cluster's images.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use axum::body::Body;
use clap::Subcommand;
use futures_util::TryStreamExt;
use http::Method;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use super::{Global, control, table};
use crate::client::https::escape;

/// What can be done with images.
#[derive(Subcommand)]
pub enum Image {
    /// Loads a docker or OCI archive (`-`: standard input)
    Load {
        /// The archive, plain or compressed with gzip or zstd
        archive: PathBuf,
    },
    /// Lists images
    #[command(alias = "list")]
    Ls {
        /// `short`, `table` or `json`
        #[arg(long, default_value = "short")]
        format: String,
    },
    /// Removes images
    #[command(alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Pulls an image from its registry
    Pull {
        /// Its name
        image: String,
    },
    /// Gives an image another name
    Tag {
        /// The image
        source: String,
        /// The new name
        target: String,
    },
    /// Writes an image as an OCI archive
    Save {
        /// The image
        image: String,
        /// The file (`-`: standard output)
        #[arg(default_value = "-")]
        file: PathBuf,
    },
}

impl Image {
    /// Runs it.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let paths = global.paths()?;
        global.config()?;
        let profile = &global.profile;
        let call = |method, path: String, body| async move {
            control::call(&global.paths()?, profile, method, &path, body).await
        };
        super::block_on(async {
            match self {
                Self::Load { archive } => {
                    let body = if archive.as_os_str() == "-" {
                        Body::from_stream(ReaderStream::new(tokio::io::stdin()))
                    } else {
                        let file = tokio::fs::File::open(&archive).await;
                        Body::from_stream(ReaderStream::new(
                            file.with_context(|| format!("reading {}", archive.display()))?,
                        ))
                    };
                    print!("{}", String::from_utf8_lossy(&call(Method::POST, "/images/load".into(), body).await?));
                }
                Self::Ls { format } => list(&call(Method::GET, "/images".into(), Body::empty()).await?, &format)?,
                Self::Rm { images } => {
                    for image in images {
                        call(Method::DELETE, format!("/images?name={}", escape(&image)), Body::empty()).await?;
                    }
                }
                Self::Pull { image } => {
                    let answer =
                        call(Method::POST, format!("/images/pull?name={}", escape(&image)), Body::empty()).await?;
                    print!("{}", String::from_utf8_lossy(&answer));
                }
                Self::Tag { source, target } => {
                    let path = format!("/images/tag?name={}&target={}", escape(&source), escape(&target));
                    call(Method::POST, path, Body::empty()).await?;
                }
                Self::Save { image, file } => {
                    let path = format!("/images/save?name={}", escape(&image));
                    let answer = control::send(&paths, Method::GET, &path, Body::empty()).await?;
                    let answer = answer.context("the cluster is not running")?;
                    if !answer.status().is_success() {
                        let text = answer.into_body().collect().await?.to_bytes();
                        anyhow::bail!("{}", String::from_utf8_lossy(&text));
                    }
                    save(answer.into_body(), &file).await?;
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

async fn save(body: hyper::body::Incoming, file: &std::path::Path) -> Result<()> {
    let mut out: Box<dyn tokio::io::AsyncWrite + Unpin> = if file.as_os_str() == "-" {
        Box::new(tokio::io::stdout())
    } else {
        Box::new(tokio::fs::File::create(file).await.with_context(|| format!("writing {}", file.display()))?)
    };
    let mut stream = body.into_data_stream();
    while let Some(data) = stream.try_next().await? {
        out.write_all(&data).await?;
    }
    out.flush().await?;
    Ok(())
}

fn list(answer: &[u8], format: &str) -> Result<()> {
    if format == "json" {
        println!("{}", String::from_utf8_lossy(answer));
        return Ok(());
    }
    let images: Vec<serde_json::Value> = serde_json::from_slice(answer)?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut rows = Vec::new();
    for image in &images {
        let id = text(&image["id"]).trim_start_matches("sha256:").chars().take(13).collect::<String>();
        let size = format!("{:.1}MB", image["size"].as_f64().unwrap_or_default() / 1e6);
        for tag in image["repoTags"].as_array().into_iter().flatten() {
            rows.push(vec![text(tag), id.clone(), size.clone()]);
        }
    }
    rows.sort();
    if format == "table" {
        print!("{}", table::format(&["IMAGE", "IMAGE ID", "SIZE"], &rows));
    } else {
        rows.iter().for_each(|row| println!("{}", row[0]));
    }
    Ok(())
}
