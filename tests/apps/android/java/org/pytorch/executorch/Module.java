package org.pytorch.executorch;

import java.io.File;

/** Computes with JavaUser's formula; checks that it is called as the real one demands. */
public class Module {
    public static final int LOAD_MODE_MMAP = 1;
    public static int destroyed = 0;

    public static Module load(String path, int mode, int threads) {
        if (!new File(path).isFile() || mode != LOAD_MODE_MMAP || threads < 0) throw new IllegalArgumentException(path);
        return new Module();
    }

    public EValue[] forward(EValue... inputs) {
        Tensor tokens = inputs[0].toTensor();
        Tensor position = inputs[1].toTensor();
        if (tokens.shape.length != 2 || tokens.shape[0] != 1 || tokens.shape[1] != tokens.longs.length || position.shape.length != 1) {
            throw new IllegalArgumentException("shapes");
        }
        if (tests.JavaUser.hot) throw new IllegalStateException("Execution of method failed");
        float[] logits = tests.JavaUser.logits(tokens.longs, position.longs[0]);
        return new EValue[] {EValue.from(new Tensor(null, logits, new long[] {1, tokens.longs.length, tests.JavaUser.vocab}))};
    }

    public void destroy() {
        destroyed++;
    }
}
