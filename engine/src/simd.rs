//! Vectors of four float32, four int32 and eight int16: the only place that names machine instructions.
//!
//! On WebAssembly these are the SIMD128 instructions (and the fused multiply-add of relaxed SIMD where
//! the build has it); elsewhere plain arrays, so that the same kernels can be tested natively.
//! Loads and stores take raw pointers: callers check lengths once, before their loops.

#[cfg(target_arch = "wasm32")]
mod machine {
    use core::arch::wasm32::*;

    /// Four float32.
    #[derive(Clone, Copy)]
    pub struct F4(pub v128);
    /// Four int32.
    #[derive(Clone, Copy)]
    pub struct I4(pub v128);
    /// Eight int16.
    #[derive(Clone, Copy)]
    pub struct H8(pub v128);

    #[allow(clippy::missing_safety_doc)]
    impl F4 {
        #[inline(always)]
        pub fn splat(x: f32) -> F4 {
            F4(f32x4_splat(x))
        }
        #[inline(always)]
        pub unsafe fn load(from: *const f32) -> F4 {
            F4(v128_load(from as *const v128))
        }
        #[inline(always)]
        pub unsafe fn load_splat(from: *const f32) -> F4 {
            F4(v128_load32_splat(from as *const u32))
        }
        #[inline(always)]
        pub unsafe fn store(self, to: *mut f32) {
            v128_store(to as *mut v128, self.0)
        }
        /// Four half-precision numbers; infinities are not told from large numbers.
        #[inline(always)]
        pub unsafe fn load_half(from: *const u8) -> F4 {
            let wide = u32x4_load_extend_u16x4(from as *const u16);
            let magnitude = u32x4_shl(v128_and(wide, u32x4_splat(0x7FFF)), 13);
            let scaled = f32x4_mul(magnitude, f32x4_splat(f32::from_bits(0x7780_0000)));
            F4(v128_or(scaled, u32x4_shl(v128_and(wide, u32x4_splat(0x8000)), 16)))
        }
        #[inline(always)]
        pub fn add(self, b: F4) -> F4 {
            F4(f32x4_add(self.0, b.0))
        }
        #[inline(always)]
        pub fn mul(self, b: F4) -> F4 {
            F4(f32x4_mul(self.0, b.0))
        }
        /// self + a·b
        #[inline(always)]
        pub fn madd(self, a: F4, b: F4) -> F4 {
            #[cfg(target_feature = "relaxed-simd")]
            return F4(f32x4_relaxed_madd(a.0, b.0, self.0));
            #[cfg(not(target_feature = "relaxed-simd"))]
            F4(f32x4_add(self.0, f32x4_mul(a.0, b.0)))
        }
        #[inline(always)]
        pub fn max(self, b: F4) -> F4 {
            F4(f32x4_pmax(self.0, b.0))
        }
        #[inline(always)]
        pub fn abs(self) -> F4 {
            F4(f32x4_abs(self.0))
        }
        #[inline(always)]
        pub fn lanes(self) -> [f32; 4] {
            [
                f32x4_extract_lane::<0>(self.0),
                f32x4_extract_lane::<1>(self.0),
                f32x4_extract_lane::<2>(self.0),
                f32x4_extract_lane::<3>(self.0),
            ]
        }
    }

    #[allow(clippy::missing_safety_doc)]
    impl I4 {
        #[inline(always)]
        pub fn zero() -> I4 {
            I4(i32x4_splat(0))
        }
        /// self + the sums of products of neighbours.
        #[inline(always)]
        pub fn dot(self, a: H8, b: H8) -> I4 {
            I4(i32x4_add(self.0, i32x4_dot_i16x8(a.0, b.0)))
        }
        #[inline(always)]
        pub fn floats(self) -> F4 {
            F4(f32x4_convert_i32x4(self.0))
        }
    }

    #[allow(clippy::missing_safety_doc)]
    impl H8 {
        #[inline(always)]
        pub unsafe fn load(from: *const u8) -> H8 {
            H8(v128_load(from as *const v128))
        }
        /// Eight signed bytes, widened.
        #[inline(always)]
        pub unsafe fn load_bytes(from: *const u8) -> H8 {
            H8(i16x8_load_extend_i8x8(from as *const i8))
        }
        /// The same pair of int16 in all four places.
        #[inline(always)]
        pub unsafe fn load_pair(from: *const i16) -> H8 {
            H8(v128_load32_splat(from as *const u32))
        }
        #[inline(always)]
        pub fn bits<const SHIFT: u32, const MASK: u16>(self) -> H8 {
            let moved = if SHIFT == 0 { self.0 } else { u16x8_shr(self.0, SHIFT) };
            H8(if (0xFFFFu32 >> SHIFT) == MASK as u32 { moved } else { v128_and(moved, u16x8_splat(MASK)) })
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod machine {
    use crate::bytes::u16_at;

    /// Four float32.
    #[derive(Clone, Copy)]
    pub struct F4([f32; 4]);
    /// Four int32.
    #[derive(Clone, Copy)]
    pub struct I4([i32; 4]);
    /// Eight int16.
    #[derive(Clone, Copy)]
    pub struct H8([i16; 8]);

    #[allow(clippy::missing_safety_doc)]
    impl F4 {
        #[inline(always)]
        pub fn splat(x: f32) -> F4 {
            F4([x; 4])
        }
        #[inline(always)]
        pub unsafe fn load(from: *const f32) -> F4 {
            F4((from as *const [f32; 4]).read_unaligned())
        }
        #[inline(always)]
        pub unsafe fn load_splat(from: *const f32) -> F4 {
            F4([from.read_unaligned(); 4])
        }
        #[inline(always)]
        pub unsafe fn store(self, to: *mut f32) {
            (to as *mut [f32; 4]).write_unaligned(self.0)
        }
        /// Four half-precision numbers.
        #[inline(always)]
        pub unsafe fn load_half(from: *const u8) -> F4 {
            let bytes = core::slice::from_raw_parts(from, 8);
            F4(core::array::from_fn(|i| crate::math::half(u16_at(bytes, 2 * i))))
        }
        #[inline(always)]
        pub fn add(self, b: F4) -> F4 {
            F4(core::array::from_fn(|i| self.0[i] + b.0[i]))
        }
        #[inline(always)]
        pub fn mul(self, b: F4) -> F4 {
            F4(core::array::from_fn(|i| self.0[i] * b.0[i]))
        }
        /// self + a·b
        #[inline(always)]
        pub fn madd(self, a: F4, b: F4) -> F4 {
            F4(core::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
        }
        #[inline(always)]
        pub fn max(self, b: F4) -> F4 {
            F4(core::array::from_fn(|i| if self.0[i] < b.0[i] { b.0[i] } else { self.0[i] }))
        }
        #[inline(always)]
        pub fn abs(self) -> F4 {
            F4(core::array::from_fn(|i| f32::from_bits(self.0[i].to_bits() & 0x7FFF_FFFF)))
        }
        #[inline(always)]
        pub fn lanes(self) -> [f32; 4] {
            self.0
        }
    }

    #[allow(clippy::missing_safety_doc)]
    impl I4 {
        #[inline(always)]
        pub fn zero() -> I4 {
            I4([0; 4])
        }
        /// self + the sums of products of neighbours.
        #[inline(always)]
        pub fn dot(self, a: H8, b: H8) -> I4 {
            I4(core::array::from_fn(|i| {
                self.0[i]
                    + a.0[2 * i] as i32 * b.0[2 * i] as i32
                    + a.0[2 * i + 1] as i32 * b.0[2 * i + 1] as i32
            }))
        }
        #[inline(always)]
        pub fn floats(self) -> F4 {
            F4(core::array::from_fn(|i| self.0[i] as f32))
        }
    }

    #[allow(clippy::missing_safety_doc)]
    impl H8 {
        #[inline(always)]
        pub unsafe fn load(from: *const u8) -> H8 {
            let bytes = core::slice::from_raw_parts(from, 16);
            H8(core::array::from_fn(|i| u16_at(bytes, 2 * i) as i16))
        }
        /// Eight signed bytes, widened.
        #[inline(always)]
        pub unsafe fn load_bytes(from: *const u8) -> H8 {
            H8(core::array::from_fn(|i| *from.add(i) as i8 as i16))
        }
        /// The same pair of int16 in all four places.
        #[inline(always)]
        pub unsafe fn load_pair(from: *const i16) -> H8 {
            H8(core::array::from_fn(|i| *from.add(i & 1)))
        }
        #[inline(always)]
        pub fn bits<const SHIFT: u32, const MASK: u16>(self) -> H8 {
            H8(core::array::from_fn(|i| ((self.0[i] as u16 >> SHIFT) & MASK) as i16))
        }
    }
}

pub use machine::{F4, H8, I4};

impl F4 {
    /// Four zeros.
    #[inline(always)]
    pub fn zero() -> F4 {
        F4::splat(0.0)
    }

    /// The sum of the four.
    #[inline(always)]
    pub fn sum(self) -> f32 {
        let [a, b, c, d] = self.lanes();
        (a + c) + (b + d)
    }
}
