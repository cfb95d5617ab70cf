//! llama.cpp, to be compared with: fetched, built for each ISA level, and run at the same steps as ours.

use crate::{
    download,
    paths::Paths,
    process,
    stamp::{Inputs, Stamp},
};
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where llama.cpp lies in the source distribution.
const SOURCE: &str = "vendor/llama.cpp";
/// `-march` of what holds no kernels.
const BASELINE: &str = "armv8-a";
/// As it would be built for one machine; libraries that are linked into one program, without Arm's own kernels.
const OPTIONS: [&str; 15] = [
    "CMAKE_BUILD_TYPE=Release",
    "CMAKE_SYSTEM_NAME=Linux",
    "CMAKE_SYSTEM_PROCESSOR=aarch64",
    "CMAKE_C_COMPILER=aarch64-linux-gnu-gcc",
    "CMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    "BUILD_SHARED_LIBS=OFF",
    "GGML_NATIVE=OFF",
    "GGML_OPENMP=OFF",
    "GGML_CPU_KLEIDIAI=OFF",
    "LLAMA_BUILD_COMMON=OFF",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_TOOLS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_SERVER=OFF",
    "LLAMA_BUILD_APP=OFF",
];

/// A program that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Takes the steps, with a whole model.
    Steps,
    /// Multiplies a matrix of each format.
    Products,
}

impl Program {
    /// Its name, and its source.
    const fn file(self) -> (&'static str, &'static str) {
        match self {
            Self::Steps => ("peer", "secure-partition/llm/bench/peer.cpp"),
            Self::Products => ("products", "secure-partition/llm/bench/products.cpp"),
        }
    }
}

/// llama.cpp's source, and where it is built.
pub struct Peer {
    folder: PathBuf,
    root: PathBuf,
    logs: PathBuf,
    archive: PathBuf,
    jobs: String,
}

impl Peer {
    /// Fetches the source.
    ///
    /// # Errors
    ///
    /// If it cannot be fetched.
    pub fn new(paths: &Paths) -> Result<Self> {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from).to_string();
        let folder = paths.out.join("bench/llama.cpp");
        fs::create_dir_all(&folder)?;
        let (root, logs) = (paths.root.clone(), paths.out.join("log"));
        Ok(Self { folder, root, logs, archive: download::llama_cpp(paths)?, jobs })
    }

    /// A program with kernels for `march`, built if need be.
    ///
    /// # Errors
    ///
    /// If it does not compile.
    pub fn program(&self, program: Program, march: &str) -> Result<PathBuf> {
        let (name, file) = program.file();
        let driver = self.root.join(file);
        let binary = self.folder.join(format!("{name}-{march}"));
        let inputs = Inputs::default().text(download::LLAMA_CPP_SHA256).file(&driver)?;
        let inputs = OPTIONS.iter().fold(inputs.text(march), |inputs, option| inputs.text(option));
        let stamp = Stamp::new(self.folder.join(format!("{name}-{march}.stamp")), inputs);
        if stamp.is_fresh() && binary.is_file() {
            return Ok(binary);
        }
        stamp.clear()?;
        let source = self.source()?;
        let mut cxx = process::command("aarch64-linux-gnu-g++");
        cxx.args(["-std=c++17", "-O2", "-static", "-o"]).arg(&binary).arg(&driver);
        cxx.arg("-I").arg(source.join("include")).arg("-I").arg(source.join("ggml/include"));
        if program == Program::Steps {
            cxx.arg(self.library(&source, BASELINE, "llama", "src/libllama.a")?);
        }
        let kernels = ["", "-cpu", "-base"].map(|part| format!("ggml/src/libggml{part}.a"));
        let [ggml, cpu, base] = &kernels;
        let ggml = self.library(&source, march, "ggml", ggml)?;
        cxx.args([ggml, self.folder.join(march).join(cpu), self.folder.join(march).join(base)]);
        let log = self.logs.join("peer.log");
        process::step(&format!("Linking llama.cpp for {march}"), &mut cxx, &log)?;
        stamp.set()?;
        Ok(binary)
    }

    /// The model with every matrix in Q4_0, by llama.cpp's own conversion; `run` runs a program for Arm.
    ///
    /// # Errors
    ///
    /// If it cannot be converted.
    pub fn requantised(&self, model: &Path) -> Result<PathBuf> {
        let out = self.folder.join("model-q4_0.gguf");
        let stamp = Stamp::new(
            self.folder.join("model-q4_0.stamp"),
            Inputs::default().text(&crate::stamp::sha256_of_file(model)?).text(download::LLAMA_CPP_SHA256),
        );
        if stamp.is_fresh() && out.is_file() {
            return Ok(out);
        }
        stamp.clear()?;
        let mut qemu = process::command("qemu-aarch64");
        qemu.arg(self.program(Program::Steps, BASELINE)?).arg("--requantise").arg(model).arg(&out);
        process::step("Requantising the model", &mut qemu, &self.logs.join("requantise.log"))?;
        stamp.set()?;
        Ok(out)
    }

    /// One of the libraries, with kernels for `march`.
    fn library(&self, source: &Path, march: &str, target: &str, file: &str) -> Result<PathBuf> {
        let build = self.folder.join(march);
        let log = self.logs.join(format!("llama.cpp-{march}.log"));
        // CMake refuses what was configured before the source tree was moved.
        let home = format!("CMAKE_HOME_DIRECTORY:INTERNAL={}\n", source.display());
        if fs::read_to_string(build.join("CMakeCache.txt")).is_ok_and(|cache| !cache.contains(&home)) {
            fs::remove_dir_all(&build)?;
        }
        let mut configure = process::command("cmake");
        configure.arg("-S").arg(source).arg("-B").arg(&build);
        configure.args(OPTIONS.iter().map(|option| format!("-D{option}")));
        configure.arg(format!("-DGGML_CPU_ARM_ARCH={march}"));
        process::step(&format!("Configuring llama.cpp for {march}"), &mut configure, &log)?;
        let mut make = process::command("cmake");
        make.arg("--build").arg(&build).args(["--target", target, "--parallel", &self.jobs]);
        process::step(&format!("Building lib{target} for {march} (minutes, once)"), &mut make, &log)?;
        Ok(build.join(file))
    }

    /// The unpacked source.
    fn source(&self) -> Result<PathBuf> {
        let source = self.folder.join("source");
        if !source.is_dir() {
            let folder = tempfile::tempdir_in(&self.folder)?;
            let mut tar = process::command("tar");
            tar.arg("--extract").arg("--file").arg(&self.archive);
            tar.arg("--directory").arg(folder.path()).arg("--strip-components=1");
            process::step("Unpacking llama.cpp", &mut tar, &self.logs.join("llama.cpp.log"))?;
            fs::rename(folder.path(), &source).context("cannot keep llama.cpp's source")?;
        }
        Ok(source.join(SOURCE))
    }
}
