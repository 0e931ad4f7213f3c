//! Which files make up libtorch on each platform, with their checksums, and which parts of them
//! each flavour needs.

use std::path::{Path, PathBuf};

/// A wheel, by the file name its index gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wheel {
    pub(crate) file: &'static str,
    pub(crate) size: u64,
    pub(crate) sha256: &'static str,
}

const fn wheel(file: &'static str, size: u64, sha256: &'static str) -> Wheel {
    Wheel { file, size, sha256 }
}

impl Wheel {
    /// `name==version`, out of the file name (`name-version-python-abi-platform.whl`).
    pub(crate) fn requirement(&self) -> String {
        let mut parts = self.file.split('-');
        let (name, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        format!("{}=={version}", name.replace('_', "-"))
    }

    /// The platform tags in the file name.
    pub(crate) fn platform_tags(&self) -> impl Iterator<Item = &'static str> {
        let stem = self.file.trim_end_matches(".whl");
        stem.rsplit('-').next().unwrap_or_default().split('.')
    }
}

/// With a GPU, or for the processor alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavor {
    Cpu,
    Cuda,
}

impl Flavor {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// A platform for which the wheels are pinned.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) name: &'static str,
    torch: Wheel,
    /// What the CUDA build needs beside it.
    nvidia: &'static [Wheel],
    /// The libraries out of the torch wheel that make up the cpu flavour.
    cpu_libraries: &'static [&'static str],
    /// Bytes on disk when unpacked, rounded up: cpu, cuda.
    unpacked: [u64; 2],
}

/// The libraries of the CUDA runtime that even the cpu flavour of a CUDA build loads.
const CUDA_RUNTIME_LIBRARIES: [&str; 2] = ["libcudart.so.13", "libcupti.so.13"];

pub(crate) static PLATFORMS: [Platform; 3] = [
    Platform {
        name: "linux-x86_64",
        torch: wheel(
            "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl",
            530_712_279,
            "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
        ),
        nvidia: &NVIDIA_X86_64,
        cpu_libraries: &["libtorch_cpu.so", "libc10.so", "libgomp.so.1"],
        unpacked: [520_000_000, 3_950_000_000],
    },
    Platform {
        name: "linux-aarch64",
        torch: wheel(
            "torch-2.11.0-cp312-cp312-manylinux_2_28_aarch64.whl",
            419_731_115,
            "f99924682ef0aa6a4ab3b1b76f40dc6e273fca09f367d15a524266db100a723f",
        ),
        nvidia: &NVIDIA_AARCH64,
        cpu_libraries: &[
            "libtorch_cpu.so",
            "libc10.so",
            "libgomp.so.1",
            "libarm_compute.so",
            "libarm_compute_graph.so",
            "libgfortran.so.5",
            "libnvpl_blas_core.so.0",
            "libnvpl_blas_lp64_gomp.so.0",
            "libnvpl_lapack_core.so.0",
            "libnvpl_lapack_lp64_gomp.so.0",
        ],
        unpacked: [360_000_000, 3_800_000_000],
    },
    Platform {
        name: "macos-aarch64",
        torch: wheel(
            "torch-2.11.0-cp312-cp312-macosx_11_0_arm64.whl",
            80_606_338,
            "4b5866312ee6e52ea625cd211dcb97d6a2cdc1131a5f15cc0d87eec948f6dd34",
        ),
        nvidia: &[],
        cpu_libraries: &["libtorch.dylib", "libtorch_cpu.dylib", "libc10.dylib", "libomp.dylib"],
        unpacked: [290_000_000, 0],
    },
];

const NVIDIA_X86_64: [Wheel; 15] = [
    wheel(
        "nvidia_cudnn_cu13-9.19.0.56-py3-none-manylinux_2_27_x86_64.whl",
        366_066_321,
        "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf",
    ),
    wheel(
        "nvidia_cusparselt_cu13-0.8.0-py3-none-manylinux2014_x86_64.whl",
        169_884_119,
        "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd",
    ),
    wheel(
        "nvidia_nccl_cu13-2.28.9-py3-none-manylinux_2_18_x86_64.whl",
        196_493_177,
        "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42",
    ),
    wheel(
        "nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        60_412_546,
        "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
    ),
    wheel(
        "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_x86_64.whl",
        423_133_236,
        "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
    ),
    wheel(
        "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        10_715_597,
        "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    ),
    wheel(
        "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        90_215_200,
        "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
    ),
    wheel(
        "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        2_243_632,
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    ),
    wheel(
        "nvidia_cufft-12.0.0.61-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        214_085_489,
        "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
    ),
    wheel(
        "nvidia_cufile-1.15.1.6-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        1_223_672,
        "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
    ),
    wheel(
        "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_x86_64.whl",
        59_544_258,
        "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
    ),
    wheel(
        "nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_x86_64.whl",
        200_941_980,
        "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
    ),
    wheel(
        "nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        145_942_937,
        "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
    ),
    wheel(
        "nvidia_nvjitlink-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        40_713_933,
        "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
    ),
    wheel(
        "nvidia_nvtx-13.0.85-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.whl",
        148_047,
        "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4",
    ),
];

const NVIDIA_AARCH64: [Wheel; 15] = [
    wheel(
        "nvidia_cudnn_cu13-9.19.0.56-py3-none-manylinux_2_27_aarch64.whl",
        433_781_201,
        "6ed29ffaee1176c612daf442e4dd6cfeb6a0caa43ddcbeb59da94953030b1be4",
    ),
    wheel(
        "nvidia_cusparselt_cu13-0.8.0-py3-none-manylinux2014_aarch64.whl",
        220_791_277,
        "400c6ed1cf6780fc6efedd64ec9f1345871767e6a1a0a552a1ea0578117ea77c",
    ),
    wheel(
        "nvidia_nccl_cu13-2.28.9-py3-none-manylinux_2_18_aarch64.whl",
        196_561_677,
        "01c873ba1626b54caa12272ed228dc5b2781545e0ae8ba3f432a8ef1c6d78643",
    ),
    wheel(
        "nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        60_215_947,
        "6dc2a197f38e5d0376ad52cd1a2a3617d3cdc150fd5966f4aee9bcebb1d68fe9",
    ),
    wheel(
        "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_aarch64.whl",
        542_851_226,
        "c86fc7f7ae36d7528288c5d88098edcb7b02c633d262e7ddbb86b0ad91be5df2",
    ),
    wheel(
        "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_aarch64.whl",
        10_310_827,
        "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
    ),
    wheel(
        "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        43_015_449,
        "d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b",
    ),
    wheel(
        "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        2_261_060,
        "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
    ),
    wheel(
        "nvidia_cufft-12.0.0.61-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        214_053_554,
        "2708c852ef8cd89d1d2068bdbece0aa188813a0c934db3779b9b1faa8442e5f5",
    ),
    wheel(
        "nvidia_cufile-1.15.1.6-py3-none-manylinux_2_27_aarch64.whl",
        1_136_992,
        "bdc0deedc61f548bddf7733bdc216456c2fdb101d020e1ab4b88d232d5e2f6d1",
    ),
    wheel(
        "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_aarch64.whl",
        61_962_106,
        "133df5a7509c3e292aaa2b477afd0194f06ce4ea24d714d616ff36439cee349a",
    ),
    wheel(
        "nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_aarch64.whl",
        223_467_760,
        "02c2457eaa9e39de20f880f4bd8820e6a1cfb9f9a34f820eb12a155aa5bc92d2",
    ),
    wheel(
        "nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        162_155_568,
        "80bcc4662f23f1054ee334a15c72b8940402975e0eab63178fc7e670aa59472c",
    ),
    wheel(
        "nvidia_nvjitlink-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        38_768_748,
        "e931536ccc7d467a98ba1d8b89ff7fa7f1fa3b13f2b0069118cd7f47bff07d0c",
    ),
    wheel(
        "nvidia_nvtx-13.0.85-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        148_878,
        "cb7780edb6b14107373c835bf8b72e7a178bac7367e23da7acb108f973f157a6",
    ),
];
/// The pinned platform this program was built for.
pub(crate) fn platform_here() -> Option<&'static Platform> {
    let here = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
    PLATFORMS.iter().find(|platform| platform.name == here)
}

impl Platform {
    pub(crate) fn has_cuda(&self) -> bool {
        !self.nvidia.is_empty()
    }

    /// The wheels a flavour is made of; the torch wheel first.
    pub(crate) fn wheels(&self, flavor: Flavor) -> Vec<Wheel> {
        let runtime = |wheel: &&Wheel| {
            wheel.file.starts_with("nvidia_cuda_runtime-") || wheel.file.starts_with("nvidia_cuda_cupti-")
        };
        let nvidia: Vec<Wheel> = match flavor {
            Flavor::Cpu => self.nvidia.iter().filter(runtime).copied().collect(),
            Flavor::Cuda => self.nvidia.to_vec(),
        };
        std::iter::once(self.torch).chain(nvidia).collect()
    }

    /// Bytes on disk when unpacked, rounded up.
    pub(crate) fn unpacked_size(&self, flavor: Flavor) -> u64 {
        self.unpacked[usize::from(flavor == Flavor::Cuda)]
    }

    /// Where in the cache entry a wheel's file goes; `None` when it is not needed.
    ///
    /// The cpu flavour is laid out like the upstream libtorch archive. The cuda flavour keeps the
    /// layout of the wheels, because the search paths inside its libraries depend on it.
    pub(crate) fn destination(&self, flavor: Flavor, name: &str) -> Option<PathBuf> {
        if flavor == Flavor::Cuda {
            let taken = ["torch/lib/", "torch/include/", "nvidia/"].iter().any(|top| name.starts_with(top));
            return (taken || name == "torch/version.py").then(|| name.into());
        }
        if name == "torch/version.py" || name.starts_with("torch/include/") {
            return name.strip_prefix("torch/").map(PathBuf::from);
        }
        let wanted = match name.strip_prefix("torch/lib/") {
            Some(library) => self.cpu_libraries.contains(&library).then_some(library),
            None => {
                name.strip_prefix("nvidia/cu13/lib/").filter(|name| CUDA_RUNTIME_LIBRARIES.contains(name))
            }
        };
        wanted.map(|library| Path::new("lib").join(library))
    }

    /// The libraries a finished tree of this flavour has to hold in its lib directory.
    pub(crate) fn required_libraries(&self, flavor: Flavor) -> Vec<&'static str> {
        match flavor {
            Flavor::Cpu if self.nvidia.is_empty() => self.cpu_libraries.to_vec(),
            Flavor::Cpu => [self.cpu_libraries, &CUDA_RUNTIME_LIBRARIES].concat(),
            Flavor::Cuda => {
                vec!["libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so"]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_is_complete() {
        for platform in &PLATFORMS {
            for wheel in platform.wheels(Flavor::Cuda) {
                assert!(wheel.file.ends_with(".whl") && wheel.file.split('-').count() == 5, "{}", wheel.file);
                assert!(wheel.sha256.len() == 64 && wheel.sha256.bytes().all(|b| b.is_ascii_hexdigit()));
                assert!(wheel.size > 100_000, "{}", wheel.file);
                let machine = platform.torch.platform_tags().next().unwrap().rsplit('_').next().unwrap();
                assert!(wheel.platform_tags().all(|tag| tag.ends_with(machine)), "{}", wheel.file);
            }
        }
        let [x86, ..] = &PLATFORMS;
        assert_eq!(x86.wheels(Flavor::Cpu).len(), 3);
        assert_eq!(x86.wheels(Flavor::Cuda).len(), 16);
    }

    #[test]
    fn names_and_tags_come_out_of_the_file_name() {
        let wheel = wheel("nvidia_nvtx-13.0.85-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.whl", 1, "");
        assert_eq!(wheel.requirement(), "nvidia-nvtx==13.0.85");
        assert_eq!(wheel.platform_tags().collect::<Vec<_>>(), ["manylinux1_x86_64", "manylinux_2_5_x86_64"]);
    }

    #[test]
    fn the_cpu_flavour_takes_little_and_the_cuda_flavour_keeps_the_layout() {
        let [x86, ..] = &PLATFORMS;
        let cpu = |name| x86.destination(Flavor::Cpu, name).map(|path| path.display().to_string());
        assert_eq!(cpu("torch/lib/libtorch_cpu.so").as_deref(), Some("lib/libtorch_cpu.so"));
        assert_eq!(cpu("nvidia/cu13/lib/libcudart.so.13").as_deref(), Some("lib/libcudart.so.13"));
        assert_eq!(cpu("torch/include/ATen/ATen.h").as_deref(), Some("include/ATen/ATen.h"));
        assert_eq!(cpu("torch/lib/libtorch_cuda.so"), None);
        assert_eq!(cpu("torch/nn/__init__.py"), None);
        let cuda = |name| x86.destination(Flavor::Cuda, name).map(|path| path.display().to_string());
        for name in ["torch/lib/libtorch_cuda.so", "nvidia/cudnn/lib/libcudnn.so.9", "torch/version.py"] {
            assert_eq!(cuda(name).as_deref(), Some(name));
        }
        assert_eq!(cuda("torch/nn/__init__.py"), None);
    }
}
