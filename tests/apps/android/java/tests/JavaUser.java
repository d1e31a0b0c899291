package tests;

import java.io.File;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import org.phi3mobile.Engine;
import org.phi3mobile.Event;
import org.phi3mobile.Generation;
import org.phi3mobile.Memory;
import org.phi3mobile.ModelOptions;
import org.phi3mobile.ModelState;
import org.phi3mobile.ModelStore;
import org.phi3mobile.Phi3Exception;
import org.phi3mobile.Phi3Model;
import org.phi3mobile.Session;

/** What an app in Java writes: a bundle for ExecuTorch's package, which is played, and the same with an engine of its own. */
public final class JavaUser {
    public static int vocab;
    public static boolean hot;

    public static float[] logits(long[] tokens, long position) {
        float[] made = new float[tokens.length * vocab];
        for (int row = 0; row < tokens.length; row++) {
            for (int id = 0; id < vocab; id++) made[row * vocab + id] = (tokens[row] * 31 + (position + row) * 7 + id * 17L) % 101 / 10f;
        }
        return made;
    }

    private static final class Own implements Engine {
        @Override
        public void forward(long[] tokens, long position, boolean isLong, FloatBuffer out) {
            out.put(logits(tokens, position));
        }

        @Override
        public void reset() {}

        @Override
        public void close() {}
    }

    private static String said(Phi3Model model) {
        Session session = model.session("Be brief.");
        List<Event> events = new ArrayList<>();
        Generation generation = new Generation.Builder().maxTokens(12).repetition(true).stop("never said").build();
        String text = session.sendBlocking("Hi", generation, event -> events.add(event));
        Event last = events.get(events.size() - 1);
        if (!(last instanceof Event.Done)) throw new AssertionError("no Done: " + events);
        if (((Event.Done) last).getStatistics().getGeneratedTokens() == 0) throw new AssertionError("nothing was said");
        return text;
    }

    public static void main(String[] arguments) throws Exception {
        File bundle = new File(arguments[0]);
        vocab = Integer.parseInt(arguments[1]);
        ModelStore store = new ModelStore(new File(arguments[2]));
        File copied = store.await(store.copy(bundle, "m"), transfer -> {});
        Memory.verdict(store.get("m").getManifest(), 1L << 40);
        String own;
        try (Phi3Model model = Phi3Model.openBlocking(copied, new ModelOptions(1, null, null, (manifest, folder) -> new Own()))) {
            own = said(model);
        }
        Phi3Model model = Phi3Model.openBlocking(copied);
        String through = said(model);
        if (!own.equals(through)) throw new AssertionError(own + " and " + through);
        hot = true;
        try {
            model.session().sendBlocking("Hi");
            throw new AssertionError("an error of ExecuTorch's was swallowed");
        } catch (Phi3Exception error) {
            if (!error.getMessage().equals("ExecuTorch says: Execution of method failed")) throw error;
        }
        model.close();
        while (model.getState().getValue() != ModelState.CLOSED) Thread.sleep(1);
        if (org.pytorch.executorch.Module.destroyed != 1) throw new AssertionError("the module was not destroyed");
        System.out.println("ok");
        System.exit(0);
    }
}
