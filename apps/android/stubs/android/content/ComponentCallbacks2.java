package android.content;

public interface ComponentCallbacks2 {
    void onTrimMemory(int level);
}
