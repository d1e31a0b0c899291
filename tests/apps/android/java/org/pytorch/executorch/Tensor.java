package org.pytorch.executorch;

/** The signatures of ExecuTorch's Android package that the SDK calls by reflection. */
public class Tensor {
    final long[] longs;
    final float[] floats;
    final long[] shape;

    Tensor(long[] longs, float[] floats, long[] shape) {
        this.longs = longs;
        this.floats = floats;
        this.shape = shape;
    }

    public static Tensor fromBlob(long[] data, long[] shape) {
        return new Tensor(data, null, shape);
    }

    public float[] getDataAsFloatArray() {
        if (floats == null) throw new IllegalStateException("Tensor of type Tensor_int64 cannot return data as float array.");
        return floats;
    }
}
