//! Several processes that compute together: libtorch's c10d with Gloo, and NCCL for cards.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::time::Duration;

use tch::{Device, Tensor};

use crate::TorchExtError;
use crate::ffi::{self, check, device_number, pointers};

/// Where processes meet, and which of them this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meeting {
    /// This process, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// The host where they meet.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether this process serves the meeting, and not somebody else before it began.
    pub serves: bool,
    /// What tells this meeting from others at the same place.
    pub name: String,
}

/// Processes that wait for each other: each of them has to make the same calls in the same order.
///
/// A call that waits for longer than the time-out, or for a process that has ended, is an error; the group is of no use
/// then. Tensors may be on any device. They travel by way of main memory, but for sums where each process has a card of its
/// own and its libtorch has NCCL.
#[derive(Debug)]
pub struct ProcessGroup {
    group: NonNull<c_void>,
    rank: usize,
    size: usize,
    is_abandoned: Cell<bool>,
}

// SAFETY: c10d's groups may be used from any thread, and a function here waits for what it began.
unsafe impl Send for ProcessGroup {}

impl ProcessGroup {
    /// Meets the other processes. The device is the one that this process will compute on.
    ///
    /// # Errors
    /// A rank that is none of them, a host that cannot be reached, a port that is taken, or processes that have not come
    /// in time.
    pub fn open(meeting: &Meeting, device: Device, timeout: Duration) -> Result<Self, TorchExtError> {
        let Meeting { rank, size, ref host, port, serves, ref name } = *meeting;
        let (Ok(rank_number), Ok(size_number)) = (c_int::try_from(rank), c_int::try_from(size)) else {
            return Err(TorchExtError::Argument(format!("rank {rank} of {size} processes: too many")));
        };
        if rank >= size {
            return Err(TorchExtError::Argument(format!(
                "rank {rank} of {size} processes: ranks count from 0"
            )));
        }
        let text = |text: &str| {
            CString::new(text)
                .map_err(|_| TorchExtError::Argument(format!("{text:?}: a zero byte in a name")))
        };
        let (host, name) = (text(host)?, text(name)?);
        let device = device_number(device)?;
        let timeout = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX / 1_000_000);
        let mut group = null_mut();
        // SAFETY: the texts end with a zero and live, and the last pointer is to a pointer to write.
        check(unsafe {
            ffi::torch_ext_group_open(
                host.as_ptr(),
                port,
                serves,
                rank_number,
                size_number,
                name.as_ptr(),
                device,
                timeout,
                &mut group,
            )
        })?;
        let missing = || TorchExtError::Argument("there is no group".to_owned());
        let group = NonNull::new(group).ok_or_else(missing)?;
        Ok(Self { group, rank, size, is_abandoned: Cell::new(false) })
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether sums of tensors on cards are NCCL's.
    pub fn has_nccl(&self) -> bool {
        // SAFETY: the group lives.
        unsafe { ffi::torch_ext_group_has_nccl(self.group.as_ptr()) }
    }

    /// Does `work`, in whose passes in training batch norm normalises by the images of all processes: in the forward
    /// passes and in the backward passes of what they answer. All processes do the same work; this one's images count or
    /// are there for nothing.
    pub fn sharing_batch_norm<T>(&self, counts: bool, work: impl FnOnce() -> T) -> T {
        struct Alone;
        impl Drop for Alone {
            fn drop(&mut self) {
                // SAFETY: null is allowed.
                unsafe { ffi::torch_ext_group_share_batch(null_mut(), true) }
            }
        }
        let _alone = Alone;
        // SAFETY: the group lives, and whatever needs it longer holds it.
        unsafe { ffi::torch_ext_group_share_batch(self.group.as_ptr(), counts) }
        work()
    }

    /// Why the last sum for batch norm failed, if one did: a network's passes may have no other way to tell.
    pub fn failure(&self) -> Option<TorchExtError> {
        // SAFETY: the group lives, and the text until the next sum, which nobody makes meanwhile.
        unsafe {
            let text = ffi::torch_ext_group_failure(self.group.as_ptr());
            (!text.is_null())
                .then(|| TorchExtError::Torch(CStr::from_ptr(text).to_string_lossy().into_owned()))
        }
    }

    /// Makes each tensor the sum of those of all processes, which have the same shapes.
    ///
    /// # Errors
    /// A process that is gone or late.
    pub fn sum(&self, tensors: &[Tensor]) -> Result<(), TorchExtError> {
        let pointers = pointers(tensors);
        // SAFETY: the group and the tensors live.
        check(unsafe { ffi::torch_ext_group_sum(self.group.as_ptr(), pointers.as_ptr(), pointers.len()) })
    }

    /// Makes each tensor the mean of those of all processes.
    ///
    /// # Errors
    /// A process that is gone or late, or tensors of integers.
    pub fn mean(&self, tensors: &[Tensor]) -> Result<(), TorchExtError> {
        if let Some(tensor) = tensors.iter().find(|tensor| !tensor.is_floating_point()) {
            return Err(TorchExtError::Argument(format!("there is no mean of {:?}", tensor.kind())));
        }
        self.sum(tensors)?;
        tch::no_grad(|| {
            tensors
                .iter()
                .try_for_each(|tensor| tensor.shallow_clone().f_div_scalar_(self.size as f64).map(drop))
        })
        .map_err(|error| TorchExtError::Torch(error.to_string()))
    }

    /// Makes each tensor that of the process `root`.
    ///
    /// # Errors
    /// A process that is gone or late, or is none.
    pub fn broadcast(&self, tensors: &[Tensor], root: usize) -> Result<(), TorchExtError> {
        if root >= self.size {
            return Err(TorchExtError::Argument(format!("there is no rank {root} in {}", self.size)));
        }
        let pointers = pointers(tensors);
        let (group, count) = (self.group.as_ptr(), pointers.len());
        // SAFETY: the group and the tensors live.
        check(unsafe { ffi::torch_ext_group_broadcast(group, pointers.as_ptr(), count, root as c_int) })
    }

    /// After an error: whatever the group still waits for, the end of this process does not. The group is never freed.
    pub fn abandon(&self) {
        self.is_abandoned.set(true);
    }

    /// Waits until all processes are here.
    ///
    /// # Errors
    /// A process that is gone or late.
    pub fn barrier(&self) -> Result<(), TorchExtError> {
        // SAFETY: the group lives.
        check(unsafe { ffi::torch_ext_group_barrier(self.group.as_ptr()) })
    }

    /// The bytes that each process gives, in the order of their ranks. Meant for little: all have memory for all.
    ///
    /// # Errors
    /// A process that is gone or late.
    pub fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TorchExtError> {
        extern "C" fn add(into: *mut c_void, bytes: *const u8, length: usize) {
            // SAFETY: `into` is the vector below, which nobody else uses during the call, and `bytes` has that length.
            unsafe { (*into.cast::<Vec<Vec<u8>>>()).push(std::slice::from_raw_parts(bytes, length).to_vec()) }
        }
        let mut all: Vec<Vec<u8>> = Vec::with_capacity(self.size);
        let into = (&raw mut all).cast();
        // SAFETY: the group and the bytes live, and `add` is given `into` during the call alone.
        check(unsafe {
            ffi::torch_ext_group_gather(self.group.as_ptr(), bytes.as_ptr(), bytes.len(), into, add)
        })?;
        Ok(all)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if self.is_abandoned.get() {
            return;
        }
        // SAFETY: the group lives, and nobody has another pointer to it.
        unsafe { ffi::torch_ext_group_free(self.group.as_ptr()) }
    }
}

/// Sums the gradients of tensors over all processes, in buckets, while the backward pass goes on that makes them.
#[derive(Debug)]
pub struct Reducer {
    reducer: NonNull<c_void>,
}

impl Reducer {
    /// For f32 tensors on the CPU that need gradients, in about the order of the forward pass. All processes give the same.
    ///
    /// # Errors
    /// Other tensors.
    pub fn new(group: &ProcessGroup, tensors: &[Tensor], bucket_bytes: i64) -> Result<Self, TorchExtError> {
        let pointers = pointers(tensors);
        let mut reducer = null_mut();
        // SAFETY: the group and the tensors live, and the last pointer is to a pointer to write.
        check(unsafe {
            ffi::torch_ext_reducer_new(
                group.group.as_ptr(),
                pointers.as_ptr(),
                pointers.len(),
                bucket_bytes,
                &mut reducer,
            )
        })?;
        let missing = || TorchExtError::Argument("there is no reducer".to_owned());
        Ok(Self { reducer: NonNull::new(reducer).ok_or_else(missing)? })
    }

    /// Bytes of gradients that are sent together, in the order in which they are sent.
    pub fn bucket_bytes(&self) -> Vec<i64> {
        extern "C" fn add(into: *mut c_void, bytes: i64) {
            // SAFETY: `into` is the vector below, which nobody else uses during the call.
            unsafe { (*into.cast::<Vec<i64>>()).push(bytes) }
        }
        let mut all: Vec<i64> = Vec::new();
        // SAFETY: the reducer lives, and `add` is given the vector during the call alone.
        unsafe { ffi::torch_ext_reducer_buckets(self.reducer.as_ptr(), (&raw mut all).cast(), add) }
        all
    }

    /// The next backward pass is the last one before [`Reducer::finish`]: gradients are sent as soon as it has made them.
    ///
    /// # Errors
    /// None but libtorch's.
    pub fn arm(&self) -> Result<(), TorchExtError> {
        // SAFETY: the reducer lives.
        check(unsafe { ffi::torch_ext_reducer_arm(self.reducer.as_ptr()) })
    }

    /// Waits for the sums, which are the gradients from then on.
    ///
    /// # Errors
    /// A process that is gone or late, or no announced backward pass.
    pub fn finish(&self) -> Result<(), TorchExtError> {
        // SAFETY: the reducer lives.
        check(unsafe { ffi::torch_ext_reducer_finish(self.reducer.as_ptr()) })
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: the reducer lives, and nobody has another pointer to it.
        unsafe { ffi::torch_ext_reducer_free(self.reducer.as_ptr()) }
    }
}
